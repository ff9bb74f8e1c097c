"""`erless demo`: the whole system, once through, measured on this machine."""
