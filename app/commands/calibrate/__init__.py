"""``topk calibrate``: labelled photographs to prediction sets, typicality and calibrated scores.

command.py   the options
run.py       the whole calibration in order
logits.py    the logits of each photograph, by the path of a request; resumed after an interruption
figures.py   cross-fitted figures: what the calibration is worth
target.py    the model folder that is written
table.py     the figures on a terminal
"""
