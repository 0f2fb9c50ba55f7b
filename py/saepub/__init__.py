"""saepub: publish sparse autoencoders, one small stage at a time.

stages/ holds one module for each Python program of bin/ and tells what happens next. The
other packages are rooms: each knows one thing, such as the Hub, W&B or checkpoints. The
modules beside this one are what everybody uses. Imports run one way: stages, rooms, catalog,
ground. tests/test_house.py holds them to it.
"""

__version__ = "1.0.0"
