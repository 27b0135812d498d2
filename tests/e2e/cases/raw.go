// A server and clients in one Go program with cgo, which makes its system calls past the C library; a child, names, UDP.
package main

// #include <unistd.h>
import "C"
import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"time"
)

func main() {
	fmt.Println("pid ok", C.getpid() > 0)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello "+r.URL.Path) }))
	c := &http.Client{Timeout: 10 * time.Second}
	good := 0
	done := make(chan int)
	for g := 0; g < 8; g++ {
		go func(g int) {
			n := 0
			for i := 0; i < 200; i++ {
				r, err := c.Get(fmt.Sprintf("http://%s/%d-%d", l.Addr(), g, i))
				if err != nil {
					fmt.Println(err)
					continue
				}
				b, _ := io.ReadAll(r.Body)
				r.Body.Close()
				if string(b) == fmt.Sprintf("hello /%d-%d", g, i) {
					n++
				}
			}
			done <- n
		}(g)
	}
	for g := 0; g < 8; g++ {
		good += <-done
	}
	fmt.Println("requests", good)
	out, err := exec.Command("sh", "-c", "echo from a child").Output()
	fmt.Print(string(out), err, "\n")
	a, err := net.LookupHost("localhost")
	fmt.Println(len(a) > 0, err)
	_, err = net.DialTimeout("tcp", "127.0.0.1:1", time.Second)
	fmt.Println(err != nil)
	u, _ := net.ListenPacket("udp", "127.0.0.1:0")
	v, _ := net.Dial("udp", u.LocalAddr().String())
	v.Write([]byte("datagram"))
	b := make([]byte, 100)
	n, _, _ := u.ReadFrom(b)
	fmt.Println(string(b[:n]))
	runtime.GC()
	fmt.Println("done")
}
