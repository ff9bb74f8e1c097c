"""Run code of unknown intent in a process that can neither write files, connect nor start others.

`kernel.py` takes the rights away, `limits.py` bounds what is left, `tower.py` is the process that
an imported tower is tried in. It is the second line: the first is that a tower is made of checked
parts only (`erless.dlrm.archive`).
"""
