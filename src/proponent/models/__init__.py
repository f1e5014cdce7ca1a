"""What is studied: torch modules and recorded runs."""
