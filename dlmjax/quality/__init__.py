"""What a trained run is good for: the quality of the text it makes, its speed, puzzles it solves, vectors it gives for texts.

Nothing is imported here: `flags` is read by `dlmjax --help`, which must answer at once.
"""
