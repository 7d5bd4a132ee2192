"""What watches over a run: requests to stop, phases that do not end, and which rank failed first."""
