"""Many machines, on Dask. Nothing but the command line knows of it, and nothing else of Dask.

prefork align IN OUT --cluster FILE      the driver: finds jobs, renders, writes, has the journal
└─ scheduler                             Dask's: connects all, and tells the driver who comes and who goes
   ├─ prefork join FILE                  a machine: one Runtime, with its own plan, zygote and workers
   └─ prefork join FILE

driver.py        the run's side: a unit of work for each machine that has room, and what became of it
dispatching.py   who gets what, as a pure state machine
machine.py       the machine's side: a plugin of Dask's worker
"""
