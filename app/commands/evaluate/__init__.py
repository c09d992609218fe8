"""``topk evaluate``: accuracy on labelled images.

command.py     the command-line options
read.py        the images and their true classes
source.py      the model under evaluation, as a run uses it: local.py in this process, remote.py over HTTP
run.py         classifies every image; journal.py keeps the outcomes, so that an interrupted run can resume
metrics.py     predictions and truth -> figures; levels.py figures by WordNet level, intervals.py confidence intervals
evaluation.py  all of it in order -> a result
table.py, chart.py, gallery.py, report.py, progress.py   output
"""
