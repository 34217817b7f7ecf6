"""Between the processes: how they are started, the messages, the sockets."""
