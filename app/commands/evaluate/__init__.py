"""``topk evaluate``: how good the answers are on labelled images.

read.py        which images there are, and which class each shows
source.py      what answers, as a run sees it: local.py in this process, remote.py over HTTP
run.py         every image is asked for; journal.py keeps what came, for a run that is interrupted
metrics.py     answers and truth -> figures; levels.py those by WordNet level, intervals.py how sure a share is
evaluation.py  all of it in order -> a result
table.py, chart.py, gallery.py, report.py, progress.py   what is shown
"""
