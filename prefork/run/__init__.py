"""One run of a command: `corpus` finds its jobs, `planning` plans it, `runner` executes it, `journal` records what is
done, `summary` and `performance` report it. A new command needs nothing here: prefork.cli passes its pipeline, intake
and settings as a RunRequest."""
