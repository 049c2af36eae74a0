"""The controllers' training: one file each, the contract that they share in ``base``.

``data`` feeds them, ``trainer_cli`` runs them, ``load`` takes the trained part of their checkpoints into live runs.
"""
