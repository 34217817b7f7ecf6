"""The command `prefork`: its commands, their options, and what they print. `app` registers every command.

A new command that runs jobs is a function in `app` under `@_command`, which returns its pipeline; options that commands
share are in `options`, the meaning of their values in `parsing`.
"""
