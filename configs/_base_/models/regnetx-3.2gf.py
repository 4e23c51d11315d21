"""RegNetX-3.2GF."""
_base_ = './classifier.py'
model = dict(backbone=dict(type='RegNet', arch='regnetx_3.2gf'), head=dict(in_channels=1008))
