"""What crosses the radio between drone and ground station: messages, outbox, keys, transports."""
