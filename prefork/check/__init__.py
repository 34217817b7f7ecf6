"""`prefork check`: whether models survive being forked here. The command's side starts in `fork_check` and, for GPUs,
`device_check`; `examination` and `device_examination` are the processes that try it; `messages` is what passes between
them. A new step is a title in `steps.STEPS` or `device_check.DEVICE_STEPS`, and a method in the examination."""
