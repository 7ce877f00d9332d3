"""What is known of devices: measured by them, described in a file, or published of their kind.

`profile_fleet` lets them measure, `fleet_costs` turns the profile into the planner's numbers, and
`boards` does the same for devices that nobody has measured.
"""
