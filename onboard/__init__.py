"""The daemon on the companion computer: sources, pipeline, learner, recorder, command line."""
