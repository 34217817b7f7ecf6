"""The pool, in the supervisor's process: `runtime` is the Python API, `supervisor` the thread that runs it.

Decisions are pure, (event, time) -> actions: `state`, `workers` (a death: `Workers.reap`), `scheduling` (which
task goes where, retries), `models` and `servers`; `processes` and its parts do what they decide. `jobs` takes a file
through the `pipeline`, `remote` asks services. Never imports torch.
"""
