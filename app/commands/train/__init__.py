"""``topk train``: a folder with a folder of images for each class -> a model folder of these classes.

plan.py       what is asked for
listing.py    the folder, as it lies there
examples.py   its images: the same bytes once, the unreadable ones left out, enough for each class
holdout.py    which of them are held out
served.py     images through the served path, many at once
features.py   a row of the frozen backbone's features for each image; store.py keeps them
head.py       the linear head: features -> logits
crops.py      images as the whole network's training sees them
finetune.py   the whole network, from the linear head on
learn.py      images -> a trained network
result.py     network and labels -> a model folder, measured as it is served
run.py        all of it in order
progress.py, chart.py, report.py   what is shown
"""
