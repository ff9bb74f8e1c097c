"""What runs in environments of other libraries is no test module of this one."""

collect_ignore = ["torchrec_exports.py", "torchrec_models.py"]
