"""What a reward is made of: each term a pure function of one scored trajectory and its group."""
