"""The pool, in the supervisor's process: `Runtime`, workers started, killed and retried, jobs. Never imports torch."""
