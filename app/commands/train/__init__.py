"""``topk train``: a folder of class folders -> a model folder with these classes.

command.py    the command-line options
plan.py       what to train
listing.py    the class folders and their files
examples.py   the images: without duplicates and unreadable files, enough for each class
holdout.py    which of them are held out
features.py   the features of each image from the frozen backbone; feature_store.py keeps them
head.py       the linear head: features -> logits
crops.py      images as fine-tuning sees them
finetune.py   trains the whole network, starting from the linear head
learn.py      images -> a trained network
result.py     network and labels -> a model folder, measured as it is served
run.py        all of it in order
progress.py, chart.py, report.py   output
"""
