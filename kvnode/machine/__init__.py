"""The state machine: the multi-version store that committed entries build. Pure; imports row 0 only."""
