"""Target `local`: releases on this machine."""
