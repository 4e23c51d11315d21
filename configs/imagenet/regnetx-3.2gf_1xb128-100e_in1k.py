"""RegNetX-3.2GF in RKAN's ImageNet recipe."""
_base_ = ['../_base_/models/regnetx-3.2gf.py', '../_base_/rkan_in1k.py']
