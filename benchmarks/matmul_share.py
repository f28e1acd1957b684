"""The time that the matrix products of a training step take alone, as a share of the step; the rest is elementwise work and memory.

    taskset -c 1 python -m benchmarks.matmul_share [--config masked:tiny] [--vocab 0] [--override optimizer.name=adamw ...] [--rounds 9]

Every product of the traced step is compiled alone, with its shapes, axes and types, and timed on arrays of its own; products and steps
take turns, and each counts with the smallest CPU time of its rounds. Products inside a loop count once.
"""

import argparse
import collections
import time

import jax

from benchmarks.random_batch import random_batch
from dlmjax import config as config_lib
from dlmjax.cluster.memory import keep_freed_memory
from dlmjax.data import load_tokenizer
from dlmjax.experiment import assemble
from dlmjax.train import train_step_of
from dlmjax.training import init_state


def products(jaxpr):
    """The dot_general equations of a program, those of inner programs included; of the branches of a `cond` the first."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        inner = [p for value in equation.params.values() for p in (value if isinstance(value, tuple | list) else [value])]
        inner = [getattr(p, "jaxpr", p) for p in inner if hasattr(getattr(p, "jaxpr", p), "eqns")]
        for program in inner[:1] if equation.primitive.name == "cond" else inner:
            yield from products(program)


def alone(equation):
    """A call that runs one product on arrays of its own and waits for it."""
    arrays = [jax.numpy.ones(v.aval.shape, v.aval.dtype) for v in equation.invars]
    program = jax.jit(lambda x, y: equation.primitive.bind(x, y, **equation.params)).lower(*arrays).compile()
    return lambda: program(*arrays).block_until_ready()


def step_of(args):
    """(call that runs one step and waits for it, its traced program)."""
    config = config_lib.load_config(args.config, "train.accumulation=1", *args.override)
    tokenizer = load_tokenizer("bytes" if args.vocab else "char27")
    with config.unlocked():
        config.model.vocab = args.vocab
    experiment = assemble(config, tokenizer)
    state = init_state(experiment.init, experiment.optimizer, jax.random.key(0), experiment.param_shardings)
    batch = random_batch(26, config.data.batch, config.data.length)
    batch, key, step = experiment.partition.put_batch(batch), jax.random.key(1), train_step_of(experiment)
    traced = step.trace(state, batch, key)
    compiled = traced.lower().compile()

    def run():
        nonlocal state
        state, metrics = compiled(state, batch, key, step.placed)
        jax.block_until_ready((state, metrics))

    return run, traced.jaxpr.jaxpr


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="masked:tiny")
    parser.add_argument("--vocab", type=int, default=0, help="classes; 0 = 27 symbols and three special ids")
    parser.add_argument("--override", nargs="*", default=[], help="section.field=value")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    keep_freed_memory()
    run, program = step_of(args)
    found = {}
    counts = collections.Counter()
    for equation in products(program):
        key = str([equation.params["dimension_numbers"], *(v.aval for v in equation.invars)])
        counts[key] += 1
        if key not in found:
            found[key] = alone(equation)
    times = collections.defaultdict(list)
    for _ in range(args.rounds):
        for name, call in (("step", run), *found.items()):
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    step, bare = min(times["step"]), sum(min(times[key]) * count for key, count in counts.items())
    print(f"{args.config}: step {step * 1e3:.0f} ms, its {counts.total()} products alone {bare * 1e3:.0f} ms, {bare / step:.0%}")


if __name__ == "__main__":
    main()
