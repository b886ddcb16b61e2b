"""Topologies that come with tlaunch: ``--topology nvl72`` reads ``nvl72.yaml`` from here. Only data, no code."""
