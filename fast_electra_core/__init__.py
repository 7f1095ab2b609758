"""Fast-ELECTRA: replaced token detection against a frozen auxiliary with an annealed temperature.

The science of the project. Knows torch and libraries for text and arrays; no orchestrator, tracker or cloud.
"""
