"""The daemon on the companion computer: sources, pipeline, learner, recorder, command line."""

import os

# Read when NumPy is first imported. The products of a frame are too small to be shared out, and OpenBLAS's threads spin
# while they wait for the next one: on two cores they took half of a replay's time from decoder and network.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
