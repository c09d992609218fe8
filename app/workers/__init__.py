"""Several processes for one service: HTTP processes decode, one engine process owns the device.

    supervisor.py  starts, watches and restarts the other processes
    http.py        an HTTP process: uvicorn, and a classifier whose queue sends jobs to the engine process
    client.py      the queue of an HTTP process
    engine.py      the engine process: the model, the device, the batches
    child.py       the control connection of a child process to the supervisor
    memory.py      shared memory: images, and the state of the engine's queue
    wire.py        the messages and frames between the processes
    metrics.py     the sum of the metrics of all processes

With ``workers = 0`` this package is not imported.
"""
