# Written by the worker crate's author; see inherit.rs.
