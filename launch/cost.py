"""Cost of a run: chips x hours x price.

    python launch/cost.py --chips 512 --price 1.5 --speed 9000 --config configs/llada_8b.py

hours = train.steps x data.batch x data.length / (speed x devices) / 3600, from the config. `--speed` is tokens per second and device,
as a run writes it into its curves (tokens_per_second_per_device): measure it with a few hundred steps on the machines in question.
`--price` is that of a chip and hour, in any currency. Not counted: compilation, evaluations, checkpoints, time
in a queue, the steps since the last checkpoint that are done again when a machine is lost, and storage.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # run as a file, it must import from the repository

from dlmjax import flags
from dlmjax.errors import InputError
from launch.command import Parser, exit_code, read_train


def main(argv: list[str]) -> int:
    """Prints hours and cost."""
    parser = Parser("cost", __doc__, "--chips N --price P --speed S [--devices D] --config CONFIG")
    parser.add_argument("--chips", type=flags.whole(1, 2**24), required=True, metavar="N", help="number of chips that are paid for")
    parser.add_argument(
        "--devices",
        type=flags.whole(1, 2**24),
        metavar="D",
        help="number of JAX devices; default: --chips",
    )
    parser.add_argument("--price", type=flags.number(0, open_low=True), required=True, metavar="P", help="price of one chip for one hour")
    parser.add_argument("--speed", type=flags.number(0, open_low=True), required=True, metavar="S", help="tokens per second on each device")
    arguments, rest = parser.parse_known_args(argv)
    devices = arguments.chips if arguments.devices is None else arguments.devices
    for flag, value in (("chips", arguments.chips), ("devices", devices), ("price", arguments.price), ("speed", arguments.speed)):
        if not value > 0:
            raise InputError(f"--{flag} is {value}; it must be above 0")
    config = read_train([*rest, "--workdir", "-"]).config
    tokens = config.train.steps * config.data.batch * config.data.length
    hours = tokens / (arguments.speed * devices) / 3600
    print(
        f"{tokens:,} tokens at {arguments.speed:,.0f} x {devices} tokens/s: {hours:,.2f} hours; "
        f"{arguments.chips} chips x {hours:,.2f} h x {arguments.price:g} = {arguments.chips * hours * arguments.price:,.2f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("cost", main))
