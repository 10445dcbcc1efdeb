"""Does the second task help the first? runs.py trains, pulls.py takes gradients, answer.py makes tables and charts."""
