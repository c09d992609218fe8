"""Several processes for one service: HTTP processes decode, one engine process owns the device.

    supervisor.py  starts the others and watches them
    http.py        an HTTP process: uvicorn, and a classifier whose queue leads to the engine
    client.py      that queue
    engine.py      the engine process: the model, the device, the batches
    child.py       what both kinds of children have in common
    memory.py      what they share: crops, and what is to be expected of the engine
    wire.py        what they say to each other
    metrics.py     the sum of their metrics

With ``workers = 0`` nothing of this is imported.
"""
