"""What a step needs on hardware that is not here: topologies, collectives of the compiled program, roofline, memory, as text."""
