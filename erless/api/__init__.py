"""The public Python API behind `import erless`: a project's stages, and a client of its gateway.

What is here joins the stages, as the command line does; each stage alone knows none of the others.
"""
