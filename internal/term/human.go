package term

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Bytes returns a size in three digits and a unit of 1024, such as "12 B", "3.4 MiB" or "120 GiB".
func Bytes(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n), -1
	for f >= 999.5 && unit < len(units)-1 {
		f /= 1024
		unit++
	}
	digits := 0
	if f < 9.995 {
		digits = 2
	} else if f < 99.95 {
		digits = 1
	}
	return strings.TrimSuffix(fixed(f, digits), ".") + " " + units[unit:unit+1] + "iB"
}

func fixed(f float64, digits int) string {
	text := strconv.FormatFloat(f, 'f', digits, 64)
	if digits > 0 {
		text = strings.TrimRight(text, "0")
	}
	return text
}

// Duration returns a time in its largest unit, such as "5 s", "12 min", "3 h" or "40 d".
func Duration(d time.Duration) string {
	switch {
	case d < 0:
		return "0 s"
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	case d < 1000*24*time.Hour:
		return fmt.Sprintf("%d d", int(d.Hours()/24))
	default:
		return fmt.Sprintf("%d a", int(d.Hours()/24/365.25))
	}
}

// Seconds is Duration of a number of seconds, however large.
func Seconds(s float64) string {
	if math.IsNaN(s) || s > 1e9 {
		return "ages"
	}
	return Duration(time.Duration(s * float64(time.Second)))
}

// Age returns how long ago a time is.
func Age(now, then time.Time) string {
	if then.IsZero() {
		return "-"
	}
	return Duration(now.Sub(then))
}

// Percent returns how much of a total is used.
func Percent(used, total uint64) string {
	if total == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f %%", math.Floor(100*float64(used)/float64(total))) // 100 only if it is full
}
