"""``topk bench``: what a server answers under load, and how much of that the client itself cost.

plan.py       what is asked for
target.py     the server: its URLs, its description, its batches
bodies.py     the images that are sent
client.py     one request -> a record
loads.py      when requests are sent: closed or open loop
capacity.py   which rate to try next
points.py     records -> figures
constant.py   a server without a model; overhead.py drives it to learn the client's own cost
run.py        all of it in order -> a result
table.py, chart.py, report.py, progress.py   what is shown
"""
