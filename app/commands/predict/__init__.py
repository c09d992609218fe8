"""``topk predict``: image files to predictions, in this process.

command.py   the command-line options
inputs.py    the files to classify
answers.py   the model, and its answer to each file
pictures.py  a picture of each file with its class activation map
table.py     an answer as text
"""
