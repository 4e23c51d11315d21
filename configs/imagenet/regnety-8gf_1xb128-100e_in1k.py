"""RegNetY-8GF in RKAN's ImageNet recipe."""
_base_ = ['../_base_/models/regnety-8gf.py', '../_base_/rkan_in1k.py']
