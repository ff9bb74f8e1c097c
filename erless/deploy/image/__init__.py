"""Images of the functions: by a container engine where one runs, else without any.

The daemonless path is small because an image is: a base, one layer with the dependencies, one with
erless, a JSON document. The same inputs give the same digest.
"""
