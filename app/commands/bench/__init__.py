"""``topk bench``: throughput and latency of a server under load, and the cost of the load generator itself.

command.py    the command-line options
plan.py       what to measure
target.py     the server: its URLs, its description, its batches
bodies.py     the images to send
client.py     one request -> a record
loads.py      when requests are sent: closed or open loop
capacity.py   which rate to try next
points.py     records -> figures
constant.py   a server without a model; overhead.py uses it to measure the client's own cost
run.py        all of it in order -> a result
table.py, chart.py, report.py, progress.py   output
"""
