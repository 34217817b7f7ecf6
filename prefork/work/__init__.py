"""What the other processes do: zygote, worker, spawned worker, model server, owner of weights on a GPU."""
