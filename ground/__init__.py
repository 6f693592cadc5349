"""The ground station on a laptop: fleet, labels, a mirror of each drone's model, the page."""
