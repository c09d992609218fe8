"""The ``topk`` commands: one module or package for each.

cli.py       the Typer app; turns errors into one line and an exit code
options.py   command-line options made from settings
console.py   printing
filenames.py, files.py   names as text; reading many files concurrently
inference.py a model in this process, applied to image files
store.py     key-value pairs in an SQLite file: `evaluate` resumes from it, `train` keeps features in it
training_images.py   the digests that `train` leaves in a model folder, for a warning by `evaluate`
serve.py, models.py, export.py   small commands
bench/, calibrate/, evaluate/, predict/, train/   large commands; their options are in command.py
reports/     the style that all HTML reports share, and class activation maps over pictures

A module imports frameworks and other slow packages inside functions, so that each command loads only what it needs.
"""
