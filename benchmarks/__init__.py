"""How long it takes: throughput.py against other programs, step_time.py with and without the decoder."""
