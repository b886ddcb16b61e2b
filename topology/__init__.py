"""The machine as a tree, and where ranks go on it. No torch, no store, no clock.

From the ground up; a module imports only from those above it in this list:

- ``model``: nodes, slots, distances; ``mesh``: the parallel dimensions
- ``explain``: one sentence for each choice; ``spares``: how many are kept, and where
- ``layout``: the order of seating; ``locality``: edges that leave a level; ``orders``: what others would do
- ``tree``, ``shares``, ``wholenodes``, ``seating``, ``account``: the steps of ``placement``
- ``placement``: ranks to slots; ``replacement``: spares for failed slots; ``shrinking``: fewer replicas
- ``description``: how a machine is described; ``yamltree``, ``nodelist``, ``fileformat``, ``files``: reading it from
  YAML; ``synthetic``: making one up
- ``picture``: drawings for the terminal (rich, imported when something is drawn)
- ``discover``: what the node itself can tell
"""
