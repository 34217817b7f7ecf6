"""The memory of a run: `probe` measures processes, `forecast` predicts tasks, `admission` and `governor` decide what
may start and what must stop, `memlog` records what happened and `figures` evaluates it. `monitor` logs the memory of
the stages inside one process."""
