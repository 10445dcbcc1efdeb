"""The author's program beside ours.

original.py, network.py, masks.py and shared.py run in its environment of 2018, as they are; the others in today's.
"""
