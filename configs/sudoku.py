"""Sudoku in place, 81 cells: masked diffusion in its k-form, another symmetric image of a board in each row, sized for one CPU core.

dlmjax puzzles --kind sudoku --count 20000 --answers-only --output runs/sudoku/boards.txt
dlmjax prepare --input runs/sudoku/boards.txt --documents line --output runs/sudoku/data
dlmjax train --config configs/sudoku.py --config.data.paths=runs/sudoku/data --workdir runs/sudoku/run
python -m benchmarks.sudoku --workdir runs/sudoku/run

`sudoku.py` and `sudoku.py:peers` know the rules' geometry: a cell has the vectors of its row, column and box, and attends to the cells that
share one with it. `sudoku.py:board` has the vectors alone, `sudoku.py:plain` neither, and `sudoku.py:autoregressive` is the twin at equal
FLOPs, which writes `clue=answer` cell by cell (prepare `dlmjax puzzles --kind sudoku --count 20000` without --answers-only for it).
docs/recipes.md has the results.
"""

from dlmjax import config as config_lib
from dlmjax.errors import InputError

FAMILIES = {"peers": "qwen3(board=True,peers=True)", "board": "qwen3(board=True)", "plain": "qwen3", "autoregressive": "qwen3(board=True)"}


def get_config(form="peers"):
    if form not in FAMILIES:
        raise InputError(f"config form {form!r} is unknown; choose one of {', '.join(FAMILIES)}")
    config = config_lib.default()
    config.data.update(length=82, batch=64, packing="documents", symmetries="sudoku")
    config.model.update(depth=4, width=96, heads=4, kv_heads=4, head_dim=24, ffn=256, rope_base=100.0, family=FAMILIES[form])
    config.execution.scan = False
    # Rows of many empty cells have several solutions and teach little.
    config.process.update(name="masked_count", weighting="cross_entropy", times="beta(a=2.0,b=3.0,flat=0.1,corrected=False)")
    config.optimizer.update(name="muon", lr=1e-2, beta2=0.98, weight_decay=0.01, warmup=50, schedule="wsd", decay=0.4)
    config.train.update(steps=2000, ema=0.99)
    config.checkpoint.every = 250
    config.log.update(every=50, evaluate=0, sample=0)
    if form == "autoregressive":  # twice the tokens in rows twice as long, at equal FLOPs
        config.data.length = 164
        config.process.update(name="autoregressive", weighting="", times="stratified")
        config.train.steps = 873
    return config
