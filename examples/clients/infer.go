// One query in JSON to a gateway: go run infer.go http://127.0.0.1:PORT MODEL
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

type tensor struct {
	Name     string `json:"name"`
	Datatype string `json:"datatype"`
	Shape    []int  `json:"shape"`
	Data     any    `json:"data"`
}

func main() {
	history := make([]int64, 16)
	for i := range history {
		history[i] = int64(i)
	}
	body, _ := json.Marshal(map[string]any{"inputs": []tensor{
		{"user", "INT64", []int{2}, []int64{3, 17}},
		{"history", "INT64", []int{2, 8}, history},
	}})
	request, err := http.NewRequest("POST", os.Args[1]+"/v2/models/"+os.Args[2]+"/infer", bytes.NewReader(body))
	if err != nil {
		panic(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("erless-deadline-ms", "1000")
	client := http.Client{Timeout: 5 * time.Second}
	answer, err := client.Do(request)
	if err != nil {
		panic(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		panic(err)
	}
	if answer.StatusCode != http.StatusOK {
		fmt.Fprintf(os.Stderr, "HTTP %d: %s\n", answer.StatusCode, text)
		os.Exit(1)
	}
	var decoded struct{ Outputs []tensor }
	if err := json.Unmarshal(text, &decoded); err != nil {
		panic(err)
	}
	for _, output := range decoded.Outputs {
		fmt.Println(output.Name, output.Data)
	}
}
